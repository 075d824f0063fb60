package nft

import (
	"context"
	"fmt"
	"time"

	"sigs.k8s.io/knftables"
)

// Patience is how long a change may take. The nft command takes milliseconds for
// one, and a second or two for ten thousand doors; on a small machine with much
// else to do, more.
const Patience = time.Minute

// Writer changes one table. It opens nothing before it is prepared: nft may be
// installed later. Its methods are for one goroutine at a time.
type Writer struct {
	Open func() (knftables.Interface, error)
	knftables.Interface
}

// NewWriter returns a Writer of a table of the family inet.
func NewWriter(table string) Writer {
	return Writer{Open: func() (knftables.Interface, error) { return knftables.New(family, table) }}
}

// Prepare opens what changes are made with; without, there are no transactions.
func (w *Writer) Prepare() error {
	if w.Interface != nil {
		return nil
	}
	opened, err := w.Open()
	if err != nil {
		return Explain(err)
	}
	w.Interface = opened
	return nil
}

// Run applies a transaction, all of it or nothing, within Patience.
func (w *Writer) Run(ctx context.Context, tx *knftables.Transaction) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	return w.Interface.Run(ctx, tx)
}

// RemoveTable removes the table with all that is in it; that it is gone already is
// no error.
func (w *Writer) RemoveTable(ctx context.Context) error {
	if err := w.Prepare(); err != nil {
		return err
	}
	tx := w.NewTransaction()
	tx.Delete(&knftables.Table{})
	if err := w.Run(ctx, tx); err != nil && !knftables.IsNotFound(err) {
		return fmt.Errorf("remove the table: %w", Explain(err))
	}
	return nil
}
