# Prints every twin that a packet speaks of, on any link of this machine, whoever sent it.
socket(my $all, 17, 3, 0x0300) or die "cannot listen: $!"; # AF_PACKET, SOCK_RAW, ETH_P_ALL
$| = 1;
while (defined recv($all, my $packet, 65535, 0)) {
  print "$1\n" while $packet =~ /(twin-[^;]*;)/g;
}
