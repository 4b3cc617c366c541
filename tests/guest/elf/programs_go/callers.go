// Prints the return addresses of a deep stack, as the runtime sees them, and waits there.
package main

import (
	"fmt"
	"runtime"
	"syscall"
	"time"
)

//go:noinline
func leaf(n int) int {
	pcs := make([]uintptr, 100)
	pcs = pcs[:runtime.Callers(1, pcs)]
	for _, pc := range pcs {
		fmt.Print(pc, " ")
	}
	fmt.Println()
	syscall.Pause()
	return n
}

//go:noinline
func small(n int) int { return deep(n-1) + 1 }

//go:noinline
func deep(n int) int {
	var frame [50]int
	frame[n%50] = n
	if n == 0 {
		return leaf(n)
	}
	return small(n) + frame[(n+1)%50]
}

func main() {
	go func() {
		for {
			time.Sleep(time.Millisecond)
		}
	}()
	deep(10)
}
