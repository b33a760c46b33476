my %h = map { $_ => "x" x 100 } 1..2000;
for my $i (1..3) {
  pipe(my $r, my $w);
  my $p = fork;
  if (!$p) { close $r; $h{$_} .= "y" for 1..200; print $w scalar(keys %h); close $w; exit 0 }
  close $w; my $n = <$r>; waitpid $p, 0;
  die if $n != 2000;
}
my $s = join ",", sort keys %h; undef %h;
