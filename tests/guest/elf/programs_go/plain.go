// Of the standard library it needs the runtime alone, so that it is built fast in any way.
package main

//go:noinline
func work(n int) int {
	if n == 0 {
		return 0
	}
	return n + work(n-1)
}

func main() {
	println(work(3))
}
