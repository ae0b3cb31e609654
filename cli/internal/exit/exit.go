// Package exit says with which code the weir command ends. It imports the
// standard library only.
//
//	0  done
//	1  done, and the answer is no: refused, denied, failed
//	2  the command line is wrong
//	3  a part could not be reached
package exit

import "errors"

// Codes of the weir command.
const (
	OK          = 0
	Failed      = 1
	Usage       = 2
	Unreachable = 3
)

// Error is an error that ends the command with its own code.
type Error struct {
	Code int
	Err  error // nil: everything has been said already
}

// Error tells what happened; it is empty if everything has been said.
func (e *Error) Error() string {
	if e.Err == nil {
		return ""
	}
	return e.Err.Error()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// With gives err the code; a nil err stays nil.
func With(code int, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Err: err}
}

// Silent ends the command with the code and without a word.
func Silent(code int) error { return &Error{Code: code} }

// Code is the code that err ends the command with.
func Code(err error) int {
	if err == nil {
		return OK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Failed
}
