package fault_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/nightjar-edr/nightjar/pkg/contract/fault"
)

// The kinds and their statuses are known outside: they must never change.
func TestKinds(t *testing.T) {
	for _, tc := range []struct {
		kind   fault.Kind
		code   string
		status int
	}{
		{fault.Invalid, "invalid", http.StatusBadRequest},
		{fault.NotFound, "not-found", http.StatusNotFound},
		{fault.Conflict, "conflict", http.StatusConflict},
		{fault.Unavailable, "unavailable", http.StatusServiceUnavailable},
		{fault.TooLarge, "too-large", http.StatusRequestEntityTooLarge},
		{fault.Internal, "internal", http.StatusInternalServerError},
		{"of-a-newer-version", "of-a-newer-version", http.StatusInternalServerError},
		{"", "", http.StatusInternalServerError},
	} {
		t.Run(tc.code, func(t *testing.T) {
			e := fault.New(tc.kind, "no %s of %d%%", "endpoint", 7)
			if string(e.Kind) != tc.code || e.Status() != tc.status || e.Error() != "no endpoint of 7%" {
				t.Errorf("kind %q, status %d, text %q", e.Kind, e.Status(), e.Error())
			}
		})
	}
}

func TestFrom(t *testing.T) {
	if fault.From(nil) != nil {
		t.Error("nil became an error")
	}
	inner := fault.New(fault.Conflict, "taken")
	for _, tc := range []struct {
		name, message string
		err           error
		kind          fault.Kind
	}{
		{"itself", "taken", inner, fault.Conflict},
		{"wrapped", "taken", fmt.Errorf("bind: %w", inner), fault.Conflict},
		{"joined", "taken", errors.Join(errors.New("close"), inner), fault.Conflict},
		{"without a kind", "odd", &fault.Error{Message: "odd"}, fault.Internal},
		{"another error", "disk 100%d gone", errors.New("disk 100%d gone"), fault.Internal},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := fault.From(tc.err)
			if got.Kind != tc.kind || got.Message != tc.message {
				t.Errorf("got %s %q, want %s %q", got.Kind, got.Message, tc.kind, tc.message)
			}
		})
	}
}

func TestIs(t *testing.T) {
	err := fmt.Errorf("get: %w", fault.New(fault.NotFound, "no such rule"))
	for _, tc := range []struct {
		name string
		err  error
		kind fault.Kind
		want bool
	}{
		{"its kind", err, fault.NotFound, true},
		{"another kind", err, fault.Invalid, false},
		{"no fault", errors.New("broken"), fault.Internal, false},
		{"nil", nil, fault.Internal, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := fault.Is(tc.err, tc.kind); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
