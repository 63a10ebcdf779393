"""odegrad against other libraries, on one thread of one core: see README.md."""
