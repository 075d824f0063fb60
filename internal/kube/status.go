package kube

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"e13.dev/gatehouse/internal/edge"
)

const (
	writeTimeout = 10 * time.Second

	// Of what is asked about Services, only the metadata of the answer is read.
	metadataOnly     = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	metadataOnlyList = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
)

// writer holds what Apply was last given, and what came of writing it.
type writer struct {
	wake  chan struct{}
	hurry atomic.Bool // do not wait to try again

	mu    sync.Mutex
	given bool
	want  []edge.ServiceStatus
	// Of the last Snapshot, and of that which want was decided from: see
	// state.turns.
	seenTurn, turn int

	// The rest is the worker's own.
	tries     map[string]*try      // by Service
	leftovers map[string]*leftover // by Service
	pause     pause
	// listed is how often all Services had been read when leftovers were last
	// looked for, and at is when; failures are those of looking, in a row.
	listed     int
	listedAt   time.Time
	listFailed pause
}

func newWriter() *writer {
	return &writer{wake: make(chan struct{}, 1), tries: make(map[string]*try), leftovers: make(map[string]*leftover)}
}

// Apply makes Services in the API as want says, in the background: their
// addresses, their conditions of gatehouse's types, and its finalizer. Those that
// are not in want are left alone. want must have been decided from a Snapshot
// that was synced: a Service that was not known then would lose its status. It
// is not to be changed afterwards, and quickest if it is sorted by namespace and
// name. Once all was read anew, as after a time without the API server, nothing
// is written before the next call.
//
// Services that are not of type LoadBalancer any more are rid of what gatehouse
// has left on them, with the first call after a Snapshot without them.
func (c *Client) Apply(want []edge.ServiceStatus) {
	if !slices.IsSortedFunc(want, compareStatuses) {
		want = slices.SortedFunc(slices.Values(want), compareStatuses)
	}
	c.writer.mu.Lock()
	c.writer.given, c.writer.want, c.writer.turn = true, want, c.writer.seenTurn
	c.writer.mu.Unlock()
	c.writer.wakeUp()
}

// Withhold keeps anything from being written until the next Apply: what was
// decided last is not to be held against what the API says now.
func (c *Client) Withhold() {
	c.writer.mu.Lock()
	defer c.writer.mu.Unlock()
	c.writer.given, c.writer.want = false, nil
}

func (w *writer) seen(turn int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seenTurn = turn
}

// decided is what was given, and as of which turn; with the last list at least,
// or else nothing is to be written.
func (w *writer) decided(list int) (want []edge.ServiceStatus, turn int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.want, w.turn, w.given && w.turn >= list
}

func compareStatuses(a, b edge.ServiceStatus) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

func (w *writer) wakeUp() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// change is a status to be written, and the Service as it was seen to need it.
type change struct {
	key    string
	status edge.ServiceStatus
	have   *edge.Service
}

// changes compares what the API has with what is wanted, both of them sorted by
// namespace and name. Services of which nothing is wanted, that are gone, or
// that are another object of the same name by now, are left alone.
func changes(have []edge.Service, want []edge.ServiceStatus) []change {
	var out []change
	for i := range have {
		svc := &have[i]
		for len(want) > 0 && compareToService(&want[0], svc) < 0 {
			want = want[1:]
		}
		if len(want) == 0 {
			break
		}
		if w := &want[0]; compareToService(w, svc) == 0 && w.UID == svc.UID && !sameStatus(*w, svc) {
			out = append(out, change{svc.Key(), *w, svc})
		}
	}
	return out
}

func compareToService(w *edge.ServiceStatus, svc *edge.Service) int {
	if c := strings.Compare(w.Namespace, svc.Namespace); c != 0 {
		return c
	}
	return strings.Compare(w.Name, svc.Name)
}

// writeStatus writes one change now. It returns the resourceVersion that the
// Service has with it; none if the Service is gone, or was created anew under
// the same name, which is no error.
func (c *Client) writeStatus(ctx context.Context, ch change, exact bool) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if ch.have.Finalizer && !ch.status.Finalizer {
		// The watch may tell of the end of the Service before the answer comes.
		c.state.finalizerGone(ch.key, ch.status.UID)
		defer func() {
			if err != nil {
				c.state.finalizerKept(ch.status.UID)
			}
		}()
	}
	for range 3 { // conflicts are with other writers, and over at once
		var answer metav1.PartialObjectMetadata
		err = c.conn.Load().core.Patch(types.StrategicMergePatchType).
			Namespace(ch.status.Namespace).Resource("services").Name(ch.status.Name).SubResource("status").
			Param("fieldManager", FieldManager).
			SetHeader("Accept", metadataOnly).
			Body(statusPatch(ch.status, ch.have, time.Now(), exact)).
			// Who is asked to wait waits with all that is to be written.
			MaxRetries(0).
			Do(ctx).Into(&answer)
		if err == nil {
			return answer.ResourceVersion, nil
		}
		if exact || !apierrors.IsConflict(err) {
			break
		}
	}
	if apierrors.IsNotFound(err) || otherObject(err) {
		return "", nil
	}
	return "", err
}

// otherObject says whether the API server refused because the uid in the patch
// is not that of the Service.
func otherObject(err error) bool {
	cause, ok := apierrors.StatusCause(err, "FieldValueInvalid")
	return ok && apierrors.IsInvalid(err) && cause.Field == "metadata.uid"
}

// writeStatuses writes what is due whenever Apply was called, and again what
// failed after a while.
func (c *Client) writeStatuses(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait, again := c.writeDue(ctx)
		if later, also := c.releaseLeftovers(ctx); also && (!again || later < wait) {
			wait, again = later, true
		}
		if again {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.writer.wake:
		case <-timer.C:
		}
	}
}
