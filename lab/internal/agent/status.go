package agent

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// status is what the API server should hold about the pod.
func (p *pod) status() corev1.PodStatus {
	s := corev1.PodStatus{Phase: p.phase(), HostIP: p.agent.cfg.Address.String()}
	s.HostIPs = []corev1.HostIP{{IP: s.HostIP}, {IP: p.agent.cfg.Address6.String()}}
	if p.rec.IP != "" {
		s.PodIP, s.PodIPs = p.rec.IP, []corev1.PodIP{{IP: p.rec.IP}, {IP: p.rec.IP6}}
	}
	created := p.obj.CreationTimestamp
	s.StartTime = &created
	if p.failure != "" {
		s.Reason, s.Message = "LabCannotRun", p.failure
	}
	ready := len(p.containers) > 0
	for _, c := range p.containers {
		cs := corev1.ContainerStatus{
			Name: c.spec.Name, Image: c.spec.Image, ImageID: c.spec.Image, ContainerID: c.rec.ID,
			RestartCount: c.rec.Restarts, Ready: c.ready, Started: &c.running,
		}
		switch {
		case c.refused != "":
			cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: "LabCannotRun", Message: c.refused}
		case c.running:
			cs.State.Running = &corev1.ContainerStateRunning{StartedAt: c.since}
		case c.ended != nil && p.shouldRestart(c) && !p.ending:
			cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}
			cs.LastTerminationState.Terminated = c.terminated()
		case c.ended != nil:
			cs.State.Terminated = c.terminated()
		}
		ready = ready && c.ready
		s.ContainerStatuses = append(s.ContainerStatuses, cs)
	}
	add := func(t corev1.PodConditionType, is bool) {
		v := corev1.ConditionFalse
		if is {
			v = corev1.ConditionTrue
		}
		c := corev1.PodCondition{Type: t, Status: v, LastTransitionTime: metav1.Now()}
		for _, old := range p.obj.Status.Conditions {
			if old.Type == t && old.Status == v {
				c.LastTransitionTime = old.LastTransitionTime
			}
		}
		if last, ok := p.since[t]; ok && last.Status == v {
			c.LastTransitionTime = last.LastTransitionTime
		}
		p.since[t] = c
		s.Conditions = append(s.Conditions, c)
	}
	add(corev1.PodReadyToStartContainers, p.rec.IP != "")
	add(corev1.PodInitialized, true)
	add(corev1.ContainersReady, ready)
	add(corev1.PodReady, ready)
	return s
}

func (c *container) terminated() *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode: c.ended.code, Reason: "Completed", StartedAt: c.since, FinishedAt: c.ended.at, ContainerID: c.rec.ID,
	}
	if t.ExitCode != 0 {
		t.Reason = "Error"
	}
	return t
}

func (p *pod) phase() corev1.PodPhase {
	if len(p.containers) == 0 {
		return corev1.PodPending
	}
	failed, ended, waiting := 0, 0, 0
	for _, c := range p.containers {
		switch {
		case c.refused != "":
			waiting++
		case c.ended != nil && (p.ending || !p.shouldRestart(c)):
			ended++
			if c.ended.code != 0 {
				failed++
			}
		}
	}
	switch {
	case waiting > 0:
		return corev1.PodPending
	case ended < len(p.containers):
		return corev1.PodRunning
	case failed > 0:
		return corev1.PodFailed
	}
	return corev1.PodSucceeded
}
