#include "part.h"

extern int second(int);
extern void note(int);

__attribute__((noinline)) int first(int value)
{
	int sum = 0;

	for (int index = 0; index < value; index++)
		sum += middle(index) - leaf(sum);
	return sum;
}

__attribute__((cold, noinline)) void rare(int value)
{
	note(middle(value));
}

int outer(int value)
{
	if (__builtin_expect(value == 77, 0))
		rare(value);
	value = first(value) + second(value);
	return middle(value);
}
