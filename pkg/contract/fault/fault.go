package fault

import (
	"errors"
	"fmt"
	"net/http"
)

// Kind is the class of an error. Its value travels as the error code of a
// request's answer and never changes.
type Kind string

// The kinds.
const (
	// Invalid: the request is malformed; repeating it changes nothing.
	Invalid Kind = "invalid"
	// NotFound: what the request names does not exist.
	NotFound Kind = "not-found"
	// Conflict: the request contradicts what is stored.
	Conflict Kind = "conflict"
	// Unavailable: cannot be done now; repeating the request may help.
	Unavailable Kind = "unavailable"
	// TooLarge: the request is larger than what is accepted.
	TooLarge Kind = "too-large"
	// Internal: a failure of this side.
	Internal Kind = "internal"
)

// status maps each kind to the HTTP status where a status speaks.
var status = map[Kind]int{
	Invalid:     http.StatusBadRequest,
	NotFound:    http.StatusNotFound,
	Conflict:    http.StatusConflict,
	Unavailable: http.StatusServiceUnavailable,
	TooLarge:    http.StatusRequestEntityTooLarge,
	Internal:    http.StatusInternalServerError,
}

// Error is an error with its kind. Its text is Message alone.
type Error struct {
	Kind    Kind
	Message string
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Status returns the HTTP status that stands for the error's kind.
func (e *Error) Status() int {
	if code, ok := status[e.Kind]; ok {
		return code
	}
	return http.StatusInternalServerError
}

// New returns an error of a kind with a formatted message.
func New(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// From returns the *Error within err, or an Internal one with err's text when
// there is none or it has no kind. It returns nil for nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) && e.Kind != "" {
		return e
	}
	return New(Internal, "%s", err.Error())
}

// Is tells whether err is or wraps an *Error of a kind.
func Is(err error, kind Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == kind
}
