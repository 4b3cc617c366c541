// Known call paths of a C++ program that throws and catches all the time. See user_truth.c; here a round is 100 units, too.
//
//     units  path, from main
//     30     run, catcher, truth::middle, truth::Thrower<int>::work(int), spin       (before it throws)
//     25     run, catcher, truth::middle, truth::Guard::~Guard(), spin               (a cleanup, while the exception passes)
//     25     run, catcher, spin                                                      (the handler; the exception is alive)
//     20     run, virtually, truth::Square::area(double) const, spin                 (through a virtual table)
//      -     the throwing itself: libstdc++ and libgcc's own unwinder above truth::Thrower<int>::work
#include <cstdio>
#include <ctime>
#include <memory>
#include <stdexcept>
#include <string>

#define KEPT __attribute__((noipa))

static volatile unsigned long sink;

KEPT static void spin(int units)
{
    unsigned long x = 88172645463325252ul;
    for (long i = long(units) * 60000; i > 0; i--) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    sink = x;
}

namespace truth {

struct Guard {
    int units;
    KEPT ~Guard() { spin(units); }
};

template <typename T> struct Thrower {
    KEPT static T work(T units)
    {
        spin(units);
        if (sink != 1)
            throw std::runtime_error("round " + std::to_string(units));
        return units;
    }
};

KEPT int middle(int units)
{
    Guard guard{25};
    return Thrower<int>::work(units) + 1;
}

struct Shape {
    virtual ~Shape() = default;
    virtual double area(double factor) const = 0;
};

struct Square : Shape {
    KEPT double area(double factor) const override
    {
        spin(20);
        return factor * 4;
    }
};

}  // namespace truth

KEPT static void catcher()
{
    try {
        truth::middle(30);
    } catch (const std::exception &error) {
        spin(25);
        sink = (unsigned long)error.what()[0];
    }
}

KEPT static void virtually()
{
    static const std::unique_ptr<truth::Shape> shape = std::make_unique<truth::Square>();
    sink = (unsigned long)shape->area(2.5);
}

KEPT static void run(int path)
{
    if (path == 0)
        catcher();
    else
        virtually();
}

static double used_s()
{
    timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return double(now.tv_sec) + double(now.tv_nsec) * 1e-9;
}

int main(int count, char **)
{
    double times[2] = {0, 0};
    const int rounds = count > 1 ? 30 : -1;
    for (int round = 0; round != rounds; round = rounds < 0 ? 0 : round + 1) {
        for (int path = 0; path < 2; path++) {
            const double before = used_s();
            run(path);
            times[path] += used_s() - before;
        }
    }
    std::printf("catcher %.2f\nvirtually %.2f\n", 100 * times[0] / (times[0] + times[1]), 100 * times[1] / (times[0] + times[1]));
    return 0;
}
