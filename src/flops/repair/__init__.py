"""What is installed, decided: from what a repository asks for to one lock per platform, with the doctor's repairs."""
