"""`ssat score` as a script for `ray job submit`: score every image of the pool."""

if __name__ == "__main__":
    from _ssat import main

    main("score")
