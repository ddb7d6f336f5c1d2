"""What others serve: the applications, and a program where a server's own way is one."""
