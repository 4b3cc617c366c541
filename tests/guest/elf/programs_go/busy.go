// All that a Go program does at once: computes, allocates, sleeps, reads, and lets goroutines wait for each other.
package main

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"time"
)

type node struct {
	l, r *node
	v    []byte
}

//go:noinline
func tree(n int) *node {
	if n == 0 {
		return &node{v: make([]byte, 16)}
	}
	return &node{tree(n - 1), tree(n - 1), nil}
}

//go:noinline
func fib(n int) int {
	if n < 2 {
		return n
	}
	return fib(n-1) + fib(n-2)
}

func main() {
	var wg sync.WaitGroup
	ch := make(chan int, 1)
	go func() {
		for i := 0; ; i++ {
			ch <- i
		}
	}()
	go func() {
		for {
			<-ch
		}
	}()
	go func() {
		m := map[string]int{}
		for i := 0; ; i++ {
			m[fmt.Sprint(i%5000)]++
		}
	}()
	go func() {
		for {
			tree(12)
		}
	}()
	go func() {
		for {
			fib(25)
		}
	}()
	go func() {
		for {
			time.Now()
			time.Sleep(50 * time.Microsecond)
		}
	}()
	go func() {
		f, _ := os.Open("/dev/zero")
		b := make([]byte, 512)
		for {
			f.Read(b)
		}
	}()
	go func() {
		for {
			s := strings.Split(strings.Repeat("b,a,", 500), ",")
			sort.Strings(s)
		}
	}()
	fmt.Println("ready")
	wg.Add(1)
	wg.Wait()
}
