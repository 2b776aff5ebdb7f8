"""`ssat intermediate` as a script for `ray job submit`: train the classifier whose latent space is clustered."""

if __name__ == "__main__":
    from _ssat import main

    main("intermediate")
