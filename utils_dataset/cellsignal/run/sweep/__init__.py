"""Many runs on the same plates, and one table of what each is worth."""
