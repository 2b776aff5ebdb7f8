"""`ssat synth` as a script for `ray job submit`: make the synthetic pool."""

if __name__ == "__main__":
    from _ssat import main

    main("synth")
