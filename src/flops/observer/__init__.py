"""What people see of a project: events to state, the page, the terminal."""
