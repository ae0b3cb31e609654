package exit

import (
	"errors"
	"fmt"
	"testing"

	"weir.dev/weir/internal/deptest"
)

func TestImports(t *testing.T) { deptest.OnlyImports(t, "std") }

func TestCodes(t *testing.T) {
	cause := errors.New("cause")
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, OK}, {With(Usage, nil), OK}, {cause, Failed}, {With(Usage, cause), Usage},
		{fmt.Errorf("more: %w", With(Unreachable, cause)), Unreachable}, {Silent(Failed), Failed},
	} {
		if got := Code(c.err); got != c.want {
			t.Errorf("Code(%v) = %d, want %d", c.err, got, c.want)
		}
	}
	if !errors.Is(With(Usage, cause), cause) || Silent(Failed).Error() != "" {
		t.Error("the cause is lost, or silence speaks")
	}
}
