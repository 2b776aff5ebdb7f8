"""`ssat sweep` as a script for `ray job submit`: run the pipeline at every setting of a space."""

if __name__ == "__main__":
    from _ssat import main

    main("sweep")
