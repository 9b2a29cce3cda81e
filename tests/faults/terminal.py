"""`python -m tests.faults.terminal COMMAND`: runs it on a terminal of one column, and ends with its status."""

import fcntl
import os
import pty
import struct
import sys
import termios


def main(words: list[str]) -> int:
    """What the command writes to its terminal goes to stderr."""
    child, terminal = pty.fork()
    if not child:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 1, 1, 0, 0))
        os.execvp(words[0], words)
    while True:
        try:
            said = os.read(terminal, 65536)
        except OSError:  # nobody has it open any more
            break
        if not said:
            break
        os.write(2, said)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
