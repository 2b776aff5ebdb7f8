"""`ssat drift` as a script for `ray job submit`: score what was appended to the pool, and compare."""

if __name__ == "__main__":
    from _ssat import main

    main("drift")
