"""`ssat evaluate` as a script for `ray job submit`: attack every row's classifier."""

if __name__ == "__main__":
    from _ssat import main

    main("evaluate")
