"""`ssat pretrain` as a script for `ray job submit`: train the DDPM on the labelled images."""

if __name__ == "__main__":
    from _ssat import main

    main("pretrain")
