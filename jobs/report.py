"""`ssat report` as a script for `ray job submit`: write the report."""

if __name__ == "__main__":
    from _ssat import main

    main("report")
