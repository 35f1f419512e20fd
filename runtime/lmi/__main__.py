"""python -m lmi"""

from lmi.cli.main import main

if __name__ == "__main__":
    main()
