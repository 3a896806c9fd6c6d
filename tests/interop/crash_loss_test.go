package interop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
)

// The kinds of records that faults/journal.h writes.
const (
	changeWrite = iota + 1
	changeSize
	changeCreate
	changeUnlink
	changeRename
	changeMkdir
	changeRmdir
	changeLink
	changeSync
)

const (
	savedAside  = 1
	replacedDir = 2
	exchanged   = 4
)

// sector is the number of bytes that a disk writes atomically.
const sector = 512

type journalHeader struct {
	Len, Kind           uint32
	Seq, Ino, Dir, Dir2 uint64
	Off, N, Size        uint64
	NameLen, Name2Len   uint32
}

type journaled struct {
	journalHeader
	name, name2 string
	blocks      []oldBlock
	durable     bool
}

type oldBlock struct {
	off  int64
	data []byte
}

func (c *journaled) content() bool { return c.Kind == changeWrite || c.Kind == changeSize }

// lost counts the unsynced changes, and those of them that a loss has undone or torn.
type lost struct{ unsynced, undone, torn int }

func (l *lost) add(m lost) {
	l.unsynced += m.unsynced
	l.undone += m.undone
	l.torn += m.torn
}

func (l lost) String() string {
	return fmt.Sprintf("%d of %d unsynced changes undone, %d torn", l.undone, l.unsynced, l.torn)
}

// loss undoes, at random, changes of the journal that no sync has made durable.
type loss struct {
	rng        *rand.Rand
	tree, side string
	strict     bool
	// keep and tear are probabilities. With order, every change after a random change is lost, and no earlier change.
	keep, tear float64
	order      bool
	lost
}

func newLoss(rng *rand.Rand, tree, side string, strict bool) *loss {
	l := &loss{rng: rng, tree: tree, side: side, strict: strict}
	switch rng.IntN(6) {
	case 0: // every change is lost, some of them only in part
		l.tear = []float64{0, 0.7}[rng.IntN(2)]
	case 1:
		l.order, l.tear = true, 0.5
	default:
		l.keep, l.tear = []float64{0.1, 0.5, 0.8, 0.95}[rng.IntN(4)], []float64{0.3, 0.6, 0.9}[rng.IntN(3)]
	}
	return l
}

func (l *loss) apply(journal string) error {
	changes, err := readJournal(journal)
	if err != nil {
		return err
	}
	markDurable(changes, l.strict)
	// Contents are restored before names: unlinked files are still in the side directory.
	files := map[uint64][]*journaled{}
	var order []uint64
	for _, c := range changes {
		if c.Kind == changeSync || c.durable {
			continue
		}
		l.unsynced++
		if c.content() {
			if files[c.Ino] == nil {
				order = append(order, c.Ino)
			}
			files[c.Ino] = append(files[c.Ino], c)
		}
	}
	paths := map[uint64]string{}
	if len(changes) == 0 {
		return nil
	}
	for _, root := range []string{l.tree, l.side} {
		if err := walkInodes(root, func(ino uint64, path string, _ bool) { paths[ino] = path }); err != nil {
			return err
		}
	}
	for _, ino := range order {
		if path := paths[ino]; path != "" {
			if err := l.contents(path, files[ino]); err != nil {
				return fmt.Errorf("contents of %s: %w", path, err)
			}
		}
	}
	return l.names(changes)
}

func readJournal(path string) ([]*journaled, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // killed before the journal was made
	}
	if err != nil {
		return nil, err
	}
	var changes []*journaled
	size := binary.Size(journalHeader{})
	for len(data) >= size {
		c := &journaled{}
		if _, err := binary.Decode(data, binary.LittleEndian, &c.journalHeader); err != nil {
			return nil, err
		}
		if int(c.Len) > len(data) || int(c.Len) < size {
			break // an incomplete record at the end
		}
		rest := data[size:c.Len]
		data = data[c.Len:]
		c.name, rest = string(rest[:c.NameLen]), rest[c.NameLen:]
		c.name2, rest = string(rest[:c.Name2Len]), rest[c.Name2Len:]
		for len(rest) > 0 {
			n := binary.LittleEndian.Uint64(rest[8:])
			c.blocks = append(c.blocks, oldBlock{int64(binary.LittleEndian.Uint64(rest)), rest[16 : 16+n]})
			rest = rest[16+n:]
		}
		changes = append(changes, c)
	}
	return changes, nil
}

// markDurable marks changes as durable by the rules of record_sync in faults/journal.h.
func markDurable(changes []*journaled, strict bool) {
	for at, s := range changes {
		if s.Kind != changeSync {
			continue
		}
		named := func(c *journaled) bool {
			return !c.content() && (c.Dir == s.Ino || c.Dir2 == s.Ino || !strict && c.Ino == s.Ino)
		}
		var committed uint64
		for _, c := range changes[:at] {
			if !strict && c.Kind != changeSync && c.Seq <= s.Off && named(c) {
				committed = c.Seq
			}
		}
		for _, c := range changes[:at] {
			if c.Kind == changeSync || c.Seq > s.Off {
				continue
			}
			if s.Ino == 0 || c.content() && c.Ino == s.Ino || named(c) || !c.content() && c.Seq <= committed {
				c.durable = true
			}
		}
	}
}

func walkInodes(root string, found func(ino uint64, path string, dir bool)) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		found(info.Sys().(*syscall.Stat_t).Ino, path, d.IsDir())
		return nil
	})
}

// survives decides for each of n changes, in their order, whether the change is kept.
func (l *loss) survives(n int) func(i int) bool {
	cut := l.rng.IntN(n + 1)
	return func(i int) bool {
		if l.order {
			return i < cut
		}
		return l.rng.Float64() < l.keep
	}
}

// contents first undoes all changes of a file, newest first, and records the sectors that each change had produced.
// Then the surviving changes are applied again, oldest first. A change can thus be lost while a later one survives,
// and a surviving sector contains everything that had been written to it until then.
func (l *loss) contents(path string, changes []*journaled) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	type after struct {
		size, from int64
		data       []byte
	}
	states := make([]after, len(changes))
	for i := len(changes) - 1; i >= 0; i-- {
		c := changes[i]
		info, err := f.Stat()
		if err != nil {
			return err
		}
		a := &states[i]
		a.size = info.Size()
		from, to := int64(c.Off), int64(c.Off+c.N)
		if c.Kind == changeWrite {
			a.from = from / sector * sector
			if n := min((to+sector-1)/sector*sector, a.size) - a.from; n > 0 {
				a.data = make([]byte, n)
				if _, err := f.ReadAt(a.data, a.from); err != nil {
					return err
				}
			}
			if n := min(to, int64(c.Size)) - from; n > 0 {
				if _, err := f.WriteAt(make([]byte, n), from); err != nil {
					return err
				}
			}
		}
		if err := f.Truncate(int64(c.Size)); err != nil {
			return err
		}
		for _, b := range c.blocks {
			if _, err := f.WriteAt(b.data, b.off); err != nil {
				return err
			}
		}
	}
	survives := l.survives(len(changes))
	for i, c := range changes {
		a := states[i]
		torn := false
		if !survives(i) {
			torn = c.Kind == changeWrite && len(a.data) > sector && l.rng.Float64() < l.tear
			if !torn {
				l.undone++
				continue
			}
			l.torn++
		}
		if c.Kind == changeSize {
			if err := f.Truncate(a.size); err != nil {
				return err
			}
			continue
		}
		if err := l.write(f, a.from, a.data, torn); err != nil {
			return err
		}
		// The new size can reach the disk before the data.
		if info, err := f.Stat(); err != nil {
			return err
		} else if torn && info.Size() < a.size && l.rng.IntN(2) == 0 {
			if err := f.Truncate(a.size); err != nil {
				return err
			}
		}
	}
	return nil
}

// write writes all sectors; if the write is torn, only the first, the last, or random sectors.
func (l *loss) write(f *os.File, from int64, data []byte, torn bool) error {
	sectors := (len(data) + sector - 1) / sector
	keep := func(int) bool { return true }
	if torn {
		switch cut := 1 + l.rng.IntN(sectors-1); l.rng.IntN(3) {
		case 0:
			keep = func(i int) bool { return i < cut }
		case 1:
			keep = func(i int) bool { return i >= cut }
		default:
			keep = func(int) bool { return l.rng.IntN(2) == 0 }
		}
	}
	for i := range sectors {
		if at := i * sector; keep(i) {
			if _, err := f.WriteAt(data[at:min(at+sector, len(data))], from+int64(at)); err != nil {
				return err
			}
		}
	}
	return nil
}

type nameKey struct {
	dir  uint64
	name string
}

// names undoes changes of names, newest first. A kept change implies that the changes it depends on are kept: earlier
// changes of the same names and of their directories and, unless strict, all earlier changes.
func (l *loss) names(changes []*journaled) error {
	keptNames, keptDirs := map[nameKey]bool{}, map[uint64]bool{}
	dirs := map[uint64]string{}
	scan := func() error {
		return walkInodes(l.tree, func(ino uint64, path string, dir bool) {
			if dir {
				dirs[ino] = path
			}
		})
	}
	if err := scan(); err != nil {
		return err
	}
	survives := l.survives(len(changes))
	keptAny := false
	for i := len(changes) - 1; i >= 0; i-- {
		c := changes[i]
		if c.content() || c.Kind == changeSync {
			continue
		}
		one, two := nameKey{c.Dir, c.name}, nameKey{c.Dir2, c.name2}
		keep := c.durable || survives(i) || !l.strict && keptAny ||
			keptNames[one] || c.name2 != "" && keptNames[two] || c.Kind == changeMkdir && keptDirs[c.Ino]
		if keep {
			keptAny = true
			keptNames[one], keptDirs[c.Dir] = true, true
			if c.name2 != "" {
				keptNames[two], keptDirs[c.Dir2] = true, true
			}
			continue
		}
		if err := l.undoName(c, dirs); err != nil {
			return err
		}
		if err := scan(); err != nil {
			return err
		}
		l.undone++
	}
	return nil
}

func (l *loss) undoName(c *journaled, dirs map[uint64]string) error {
	path, path2 := filepath.Join(dirs[c.Dir], c.name), filepath.Join(dirs[c.Dir2], c.name2)
	aside := filepath.Join(l.side, fmt.Sprint(c.Seq))
	switch c.Kind {
	case changeCreate, changeMkdir:
		return os.Remove(path)
	case changeLink:
		// The journal records a link before it is made.
		_ = os.Remove(path)
	case changeRmdir:
		dirs[c.Ino] = path
		return os.Mkdir(path, 0o700)
	case changeUnlink:
		return os.Link(aside, path)
	case changeRename:
		if c.Off == exchanged {
			tmp := path + ".exchange"
			return firstError(os.Rename(path, tmp), os.Rename(path2, path), os.Rename(tmp, path2))
		}
		if err := os.Rename(path2, path); err != nil {
			return err
		}
		switch c.Off {
		case savedAside:
			return os.Link(aside, path2)
		case replacedDir:
			return os.Mkdir(path2, 0o700)
		}
	}
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
