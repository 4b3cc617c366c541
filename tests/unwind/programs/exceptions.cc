#include <cstdio>
#include <unistd.h>
#include <stdexcept>
#include <vector>
#include <functional>
struct Stopper { ~Stopper() { std::puts("ready"); std::fflush(stdout); while (!v) pause(); } volatile int v = 0; };
struct Other { std::vector<int> v; ~Other() { v.clear(); } };
__attribute__((noinline)) void thrower(int n) { Other o; o.v.resize(n); if (n > 3) throw std::runtime_error("x"); }
__attribute__((noinline)) void middle(std::function<void(int)> f) { Stopper s; f(7); }
int main() { try { middle([](int n) { thrower(n); }); } catch (const std::exception &e) { std::puts(e.what()); } }
