def main(args, rest):
    return 0
