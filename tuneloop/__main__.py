"""python -m tuneloop"""

from tuneloop.cli.main import main

main()
