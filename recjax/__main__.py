"""`python -m recjax` is the same as the command `recjax`."""
from recjax.cli import main

if __name__ == '__main__':
  main()
