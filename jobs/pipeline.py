"""`ssat run` as a script for `ray job submit`: compute what is missing of a comparison or selection."""

if __name__ == "__main__":
    from _ssat import main

    main("run")
