"""`ssat quality` as a script for `ray job submit`: make the guided rows' images and judge them."""

if __name__ == "__main__":
    from _ssat import main

    main("quality")
