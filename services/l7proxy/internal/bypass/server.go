package bypass

import (
	"bufio"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// head is what the lenient server reads of a request.
type head struct {
	request string // METHOD TARGET
	fields  map[string]string
}

// readHead reads lines that end with LF, with or without CR, up to an empty
// one. What ends too soon counts as well: some server would take it.
func readHead(br *bufio.Reader) (h head, ok bool) {
	h.fields = map[string]string{}
	for first := true; ; {
		line, err := br.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		switch {
		case first && line != "":
			first = false
			f := strings.Fields(line)
			if len(f) > 2 {
				f = f[:2]
			}
			h.request = strings.Join(f, " ")
		case !first && line == "":
			return h, true
		default:
			if name, value, ok := strings.Cut(line, ":"); ok {
				h.fields[strings.ToLower(strings.TrimSpace(name))] = strings.ToLower(strings.TrimSpace(value))
			}
		}
		if err != nil {
			return h, !first
		}
	}
}

func (s *server) serve(c net.Conn) {
	defer func() { _ = c.Close() }() // the proxy may have closed it
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return
	}
	br := bufio.NewReader(c)
	tunnelled := false
	for {
		h, ok := readHead(br)
		if !ok {
			return
		}
		s.note(request{request: h.request, upgrade: h.fields["upgrade"] != "", tunnelled: tunnelled})
		answer := "HTTP/1.1 200 OK\r\nX-Server: 1\r\nContent-Length: 2\r\n\r\nok"
		switch {
		case tunnelled:
			continue
		case strings.Contains(h.request, "up101"):
			protocol := h.fields["upgrade"]
			if protocol == "" {
				protocol = "h2c" // it never was asked, and does it all the same
			}
			answer = "HTTP/1.1 101 Switching Protocols\r\nX-Server: 1\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n"
			tunnelled = true
		case h.fields["expect"] != "":
			answer = "HTTP/1.1 100 Continue\r\n\r\n" + answer
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
		if !tunnelled && !skipBody(br, h) {
			return
		}
	}
}

// skipBody reads a request's body as its fields frame it.
func skipBody(br *bufio.Reader, h head) bool {
	if strings.Contains(h.fields["transfer-encoding"], "chunked") {
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return false
			}
			size, _, _ := strings.Cut(strings.TrimSpace(line), ";")
			n, err := strconv.ParseInt(size, 16, 64)
			if err != nil {
				return false
			}
			if _, err := io.CopyN(io.Discard, br, n); err != nil {
				return false
			}
			if _, err := br.ReadString('\n'); err != nil { // the chunk's end, or the trailers'
				return false
			}
			if n == 0 {
				return true
			}
		}
	}
	n, err := strconv.ParseInt(h.fields["content-length"], 10, 64)
	if err != nil {
		return true
	}
	_, err = io.CopyN(io.Discard, br, n)
	return err == nil
}
