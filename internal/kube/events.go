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
	"sync"
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
	// These bound what waits for an API server that is away, or is told of a
	// large cluster for the first time: a thousand say as much as ten thousand.
	// Warnings come first, and have more room. Events are a courtesy: the status
	// page has the same, and more.
	maxQueuedEvents   = 1024
	maxQueuedWarnings = 8192
	eventAttempts     = 6
	// eventLifetime is how long the API server keeps Events by default.
	eventLifetime = time.Hour
	// Each Service may have eventBurst writes, and one more each eventRefill.
	eventBurst  = 25
	eventRefill = 5 * time.Minute
	// eventReserve is what only warnings may use of it.
	eventReserve    = 5
	maxEventMessage = 1024 // the limit of events.k8s.io
)

// Emit tells the owner of a Service something, in the background. The same
// thing told again is counted on the first Event, not written anew; a Service
// that is told very much is told the rest later, in the count.
func (c *Client) Emit(e edge.Event) {
	if first := c.events.put(e); first {
		c.log.Warn("events_dropped", "waiting", maxQueuedEvents, "waiting_warnings", maxQueuedWarnings)
	}
}

// eventQueue is what waits to be written, each different thing once.
type eventQueue struct {
	wake chan struct{}

	mu sync.Mutex
	// Normal ones and warnings, each in the order in which they came.
	waiting [2][]edge.Event
	times   map[edge.Event]int // how often each of them was told
	full    bool               // something was dropped since it was last empty
}

func newEventQueue() *eventQueue {
	return &eventQueue{wake: make(chan struct{}, 1), times: make(map[edge.Event]int)}
}

func classOf(e edge.Event) (class, limit int) {
	if e.Warning {
		return 1, maxQueuedWarnings
	}
	return 0, maxQueuedEvents
}

// put adds one, and says whether it is the first that had to be dropped.
func (q *eventQueue) put(e edge.Event) (firstDropped bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	class, limit := classOf(e)
	if q.times[e] == 0 {
		if len(q.waiting[class]) >= limit {
			firstDropped = !q.full
			q.full = true
			return firstDropped
		}
		q.waiting[class] = append(q.waiting[class], e)
	}
	q.times[e]++
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return false
}

// take returns the next one and how often it was told. Warnings come first.
func (q *eventQueue) take() (e edge.Event, times int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for class := len(q.waiting) - 1; class >= 0; class-- {
		if all := q.waiting[class]; len(all) > 0 {
			e, q.waiting[class] = all[0], all[1:]
			times = q.times[e]
			delete(q.times, e)
			return e, times, true
		}
	}
	q.waiting, q.full = [2][]edge.Event{}, false
	return e, 0, false
}

// recordEvents writes what Emit was given.
func (c *Client) recordEvents(ctx context.Context) error {
	told := newEventLog()
	for {
		e, times, ok := c.events.take()
		if !ok {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-c.events.wake:
			}
			continue
		}
		if written, ok := told.add(e, times, time.Now()); ok {
			if err := c.writeEvent(ctx, written); err != nil {
				c.log.Debug("event_not_written", "service", e.Namespace+"/"+e.Name, "reason", e.Reason, "err", err)
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// writeEvent creates the Event, or counts it up if it was created before, and
// tries again for about half a minute.
func (c *Client) writeEvent(ctx context.Context, e *toldEvent) error {
	var err error
	for attempt := range eventAttempts {
		if e.created {
			err = c.patchEvent(ctx, e.Event)
			e.created = !apierrors.IsNotFound(err) // it has expired
		}
		if !e.created {
			err = c.createEvent(ctx, e.Event)
			e.created = err == nil
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
	told     map[edge.Event]*toldEvent
	budget   map[string]*eventBudget // by uid of the Service
	forgotAt time.Time
}

// toldEvent is an Event as the API server has it, or is to have it.
type toldEvent struct {
	*corev1.Event
	created bool
}

type eventBudget struct {
	left float64
	at   time.Time
}

func newEventLog() *eventLog {
	return &eventLog{told: make(map[edge.Event]*toldEvent), budget: make(map[string]*eventBudget)}
}

// add counts e, and returns the Event to write now unless the Service has been
// told too much already.
func (l *eventLog) add(e edge.Event, times int, now time.Time) (*toldEvent, bool) {
	l.forget(now)
	event := l.told[e]
	if event == nil {
		event = &toldEvent{Event: newEvent(e, now)}
	}
	event.Count += int32(times)
	event.LastTimestamp = metav1.NewTime(now)
	if !l.spend(e, now) {
		return nil, false // what was not created is not there to count on
	}
	l.told[e] = event
	return event, true
}

func (l *eventLog) spend(e edge.Event, now time.Time) bool {
	b := l.budget[e.UID]
	if b == nil {
		b = &eventBudget{left: eventBurst, at: now}
		l.budget[e.UID] = b
	}
	b.left = min(eventBurst, b.left+float64(now.Sub(b.at))/float64(eventRefill))
	b.at = now
	if b.left < 1 || !e.Warning && b.left < 1+eventReserve {
		return false
	}
	b.left--
	return true
}

// forget looks through all of it, and so not each time.
func (l *eventLog) forget(now time.Time) {
	if now.Sub(l.forgotAt) < time.Minute {
		return
	}
	l.forgotAt = now
	maps.DeleteFunc(l.told, func(_ edge.Event, e *toldEvent) bool { return now.Sub(e.LastTimestamp.Time) > eventLifetime })
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
