"""`ssat select` as a script for `ray job submit`: choose the images to keep and write them as a pool."""

if __name__ == "__main__":
    from _ssat import main

    main("select")
