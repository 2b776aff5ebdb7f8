"""`ssat cluster` as a script for `ray job submit`: embed the pool, or a part of it, and fit the clusters."""

if __name__ == "__main__":
    from _ssat import main

    main("cluster")
