"""What a caller asks for: build, check, look up; over one set of parts."""
