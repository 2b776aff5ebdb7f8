"""`ssat doctor` as a script for `ray job submit`: look at every node, and say what a configuration would lack."""

if __name__ == "__main__":
    from _ssat import main

    main("doctor")
