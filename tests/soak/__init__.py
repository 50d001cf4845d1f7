"""Random faults, one command each: does it end well, in time, and with nothing damaged?"""
