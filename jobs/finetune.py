"""`ssat finetune` as a script for `ray job submit`: fine-tune the DDPM for the guided rows."""

if __name__ == "__main__":
    from _ssat import main

    main("finetune")
