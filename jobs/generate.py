"""`ssat generate` as a script for `ray job submit`: sample the pool from the DDPM."""

if __name__ == "__main__":
    from _ssat import main

    main("generate")
