"""The command line: parse, call one function, print. stdout is data, stderr is talk."""
