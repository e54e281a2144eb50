"""The drill: how often the programs lose, leak or break something when they are treated badly.

`python -m tests.drill` (or `make drill`) tries four things and prints one table of tries, failures,
times and memory; `--full` takes the sizes of the published figures.

  kills    runs killed at random moments and resumed must end like runs that nobody disturbed
  hostile  damaged and malicious files must end in one line, whatever is wrong with them
  budget   saved pictures, read again, must keep their budget
  two      two processes on one folder: one works, the other leaves

Every try draws from its own seed, so a failure can be repeated alone. Finished tries are kept in
the working folder, and the same command goes on after the last of them.
"""
