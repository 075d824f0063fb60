package site

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// keyValue is one of etcd's, in its JSON: []byte is base64 there, too.
type keyValue struct {
	Key   []byte `json:"key"`
	Value []byte `json:"value"`
}

// etcd asks one question over etcd's HTTP gateway (its gRPC API as JSON: /v3/PATH).
func (s *Site) etcd(ctx context.Context, path string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://127.0.0.1:2379/v3/"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DialContext: s.Dialer("cp"), DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("etcd: %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd: %s answers %d: %s", path, resp.StatusCode, bytes.TrimSpace(data))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(data, answer)
}

// readKeys returns what is stored under keys that begin so.
func (s *Site) readKeys(ctx context.Context, prefix string) ([]keyValue, error) {
	end := []byte(prefix)
	end[len(end)-1]++
	var found struct {
		KVs []keyValue `json:"kvs"`
	}
	err := s.etcd(ctx, "kv/range", map[string]any{"key": []byte(prefix), "range_end": end}, &found)
	return found.KVs, err
}

func (s *Site) putKeys(ctx context.Context, kvs []keyValue) error {
	for _, kv := range kvs {
		if err := s.etcd(ctx, "kv/put", kv, nil); err != nil {
			return err
		}
	}
	return nil
}
