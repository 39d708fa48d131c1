/* Under the name of another user, and with the bit that makes it root's: tells whether it got that far. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
  printf("Effective uid: %d\n", (int)geteuid());
  return 0;
}
