#include "part.h"

volatile int noted;

void note(int value)
{
	noted = value;
}

__attribute__((section(".text.apart"))) int apart(int value)
{
	return middle(value) + 9;
}

int second(int value)
{
	value = leaf(value);
	{
		int inner = apart(value);

		value += middle(inner);
	}
	return value;
}

void _start(void)
{
	extern int outer(int);

	noted = outer(noted);
	for (;;)
		noted = second(noted);
}
