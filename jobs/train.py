"""`ssat train` as a script for `ray job submit`: train every row."""

if __name__ == "__main__":
    from _ssat import main

    main("train")
