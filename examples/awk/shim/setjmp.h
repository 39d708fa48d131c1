/* WASI preview 1 has no longjmp. mawk needs it for one thing: a regular expression that does not compile, after which it
   prints a message and ends with status 2. */
#include <stdio.h>
#include <stdlib.h>

typedef int jmp_buf[1];
#define setjmp(buffer) 0
#define longjmp(buffer, value) (fputs("mawk: regular expression compile failed\n", stderr), exit(2))
