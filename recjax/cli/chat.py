"""`recjax chat`: a conversation in the terminal."""
import argparse

HELP = 'talk to a trained chat model, its items all real'
EXAMPLES = (
    'checkpoints/reclm_scientific',
    'checkpoints/reclm_scientific --data=data/toys',
)
WRITES = ''


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('workdir', help='the folder of a finished run')
  parser.add_argument('--data', action='append', default=[], metavar='FOLDER',
                      help='a further data set to recommend from; /domain NAME switches')


def run(args: argparse.Namespace) -> None:
  """Talks until the input ends. args: of the command line."""
  from recjax import chat
  chat.run(args.workdir, args.data)
