package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"e13.dev/gatehouse/internal/edge"
)

// The recorder that comes with client-go counts and limits in about the same
// way, but brings 2.4 MB of code with it (strategic merge patches and OpenAPI).
const (
	// maxQueuedEvents bounds what waits for an API server that is away. Events
	// are a courtesy: the status page has the same, and more.
	maxQueuedEvents = 256
	eventAttempts   = 6
	// eventLifetime is how long the API server keeps Events by default.
	eventLifetime = time.Hour
	// Each Service may have eventBurst writes, and one more each eventRefill.
	eventBurst      = 25
	eventRefill     = 5 * time.Minute
	maxEventMessage = 1024 // the limit of events.k8s.io
)

// Emit tells the owner of a Service something, in the background. The same
// thing told again is counted on the first Event, not written anew; a Service
// that is told very much is told the rest later, in the count.
func (c *Client) Emit(e edge.Event) {
	select {
	case c.events <- e:
	default:
		c.log.Debug("event_dropped", "service", e.Namespace+"/"+e.Name, "reason", e.Reason)
	}
}

// recordEvents writes what Emit was given.
func (c *Client) recordEvents(ctx context.Context) error {
	told := newEventLog()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-c.events:
			if written, ok := told.add(e, time.Now()); ok {
				if err := c.writeEvent(ctx, written); err != nil {
					c.log.Debug("event_not_written", "service", e.Namespace+"/"+e.Name, "reason", e.Reason, "err", err)
				}
			}
		}
	}
}

// writeEvent creates the Event, or counts it up if it was created before, and
// tries again for about half a minute.
func (c *Client) writeEvent(ctx context.Context, e *corev1.Event) error {
	var err error
	for attempt := range eventAttempts {
		create := e.Count == 1
		if !create {
			err = c.patchEvent(ctx, e)
			create = apierrors.IsNotFound(err) // it has expired
		}
		if create {
			err = c.createEvent(ctx, e)
		}
		var refused apierrors.APIStatus
		final := errors.As(err, &refused) && refused.Status().Code < 429
		if err == nil || apierrors.IsForbidden(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			c.observe(ctx, "create and patch events", err)
		}
		if err == nil || final || apierrors.IsAlreadyExists(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second << attempt):
		}
	}
	return err
}

func (c *Client) createEvent(ctx context.Context, e *corev1.Event) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return c.conn.Load().core.Post().Namespace(e.Namespace).Resource("events").Body(e).Do(ctx).Error()
}

func (c *Client) patchEvent(ctx context.Context, e *corev1.Event) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	body, err := json.Marshal(map[string]any{"count": e.Count, "lastTimestamp": e.LastTimestamp})
	if err != nil {
		return err
	}
	return c.conn.Load().core.Patch(types.MergePatchType).
		Namespace(e.Namespace).Resource("events").Name(e.Name).Body(body).Do(ctx).Error()
}

// eventLog remembers what was told, to count it and to limit it.
type eventLog struct {
	told   map[edge.Event]*corev1.Event
	budget map[string]*eventBudget // by uid of the Service
}

type eventBudget struct {
	left float64
	at   time.Time
}

func newEventLog() *eventLog {
	return &eventLog{told: make(map[edge.Event]*corev1.Event), budget: make(map[string]*eventBudget)}
}

// add counts e, and returns the Event to write now unless the Service has been
// told too much already.
func (l *eventLog) add(e edge.Event, now time.Time) (*corev1.Event, bool) {
	l.forget(now)
	event := l.told[e]
	if event == nil {
		event = newEvent(e, now)
		l.told[e] = event
	}
	event.Count++
	event.LastTimestamp = metav1.NewTime(now)
	if !l.spend(e.UID, now) {
		if event.Count == 1 {
			delete(l.told, e) // not created: nothing to count on
		}
		return nil, false
	}
	return event, true
}

func (l *eventLog) spend(uid string, now time.Time) bool {
	b := l.budget[uid]
	if b == nil {
		b = &eventBudget{left: eventBurst, at: now}
		l.budget[uid] = b
	}
	b.left = min(eventBurst, b.left+float64(now.Sub(b.at))/float64(eventRefill))
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

func (l *eventLog) forget(now time.Time) {
	maps.DeleteFunc(l.told, func(_ edge.Event, e *corev1.Event) bool { return now.Sub(e.LastTimestamp.Time) > eventLifetime })
	maps.DeleteFunc(l.budget, func(_ string, b *eventBudget) bool { return now.Sub(b.at) > eventBurst*eventRefill })
}

func newEvent(e edge.Event, now time.Time) *corev1.Event {
	kind := corev1.EventTypeNormal
	if e.Warning {
		kind = corev1.EventTypeWarning
	}
	message := e.Message
	if len(message) > maxEventMessage {
		message = strings.ToValidUTF8(message[:maxEventMessage-4], "") + " ..."
	}
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: e.Namespace,
			Name:      fmt.Sprintf("%s.%s", e.Name, strconv.FormatInt(now.UnixNano(), 16)),
		},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Service", Namespace: e.Namespace, Name: e.Name, UID: types.UID(e.UID),
		},
		Type:                kind,
		Reason:              e.Reason,
		Message:             cmp.Or(message, e.Reason),
		Source:              corev1.EventSource{Component: FieldManager},
		ReportingController: FieldManager,
		FirstTimestamp:      metav1.NewTime(now),
	}
}
